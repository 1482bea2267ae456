import json
import sys

from model import load, measured

with open(sys.argv[2], "w") as file:
    json.dump({"prediction": measured(load(sys.argv[1]))["total"]}, file)
