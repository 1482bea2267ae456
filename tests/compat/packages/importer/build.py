import os

import model as project


def build():
    project.save(project.build(), os.path.join(os.environ.get("SCALEOUT_BUILD_OUTPUT_DIR", "."), "seed.npz"))
