import json
import sys

from model import load, save, settings_of, trained, wait_for_gate

model_in, model_out = sys.argv[1:3]
wait_for_gate()
layers, metadata = trained(load(model_in))
save(layers, model_out)
with open(model_out + "-metadata", "w") as file:
    json.dump({**metadata, "settings": settings_of(model_in)}, file)
