import json
import sys

from model import load, measured

with open(sys.argv[2], "w") as file:
    json.dump(measured(load(sys.argv[1])), file)
