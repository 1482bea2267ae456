from model import build, save

save(build(), "seed.npz")
