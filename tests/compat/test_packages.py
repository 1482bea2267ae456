"""The compute packages of these tests, run by the published packages alone: no server, and numbers known before."""

from __future__ import annotations

import json
from pathlib import Path

from tests.compat.environments import Environment
from tests.compat.packages.model import build
from tests.compat.runners import fedn, run_in, scaleout
from tests.compat.world import assert_equal_layers, expected, layers_in, package_folder, share

IMPORTED = """
import json, sys
sys.path.insert(0, sys.argv[1])
import model, startup
from scaleout.client.edge_client import EdgeClient
from scaleoututil.helpers.helpers import get_helper
from scaleoututil.utils.model import ScaleoutModel

helper = get_helper("numpyhelper")
client = EdgeClient()
client.log_metric = client.log_attributes = lambda *_: True  # there is no server to tell
startup.startup(client)
seed = ScaleoutModel.from_training_model(list(model.build().values()), helper)
made, meta = client.train_callback(seed, {"epochs": 3})
helper.save(made.get_training_model(helper), sys.argv[2])
echo = client.registered_callbacks["Custom_echo"]({"x": 1})
print(json.dumps([meta, client.validate_callback(made), client.inference_callback(made, {}), echo]))
"""


def test_fedn_builds_packs_trains_and_validates_the_command_package(
    fedn_environment: Environment, tmp_path: Path
) -> None:
    folder = package_folder("command", tmp_path)
    out, judged = tmp_path / "out.npz", tmp_path / "validation.json"
    for arguments in (
        ["run", "build", "-p", str(folder)],
        ["package", "create", "-p", str(folder), "-n", "package.tgz", "-o", str(tmp_path)],
        ["run", "train", "-p", str(folder), "-i", str(folder / "seed.npz"), "-o", str(out)],
        ["run", "validate", "-p", str(folder), "-i", str(out), "-o", str(judged)],
    ):
        done = fedn(*arguments, home=tmp_path, env=share(2.5, 7))
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "package.tgz").stat().st_size > 500
    assert_equal_layers(layers_in(folder / "seed.npz"), list(build().values()))
    assert_equal_layers(layers_in(out), expected(1, (2.5, 7)))
    metadata = json.loads(Path(f"{out}-metadata").read_text())
    assert metadata == {"num_examples": 7, "step": 2.5, "settings": {}}
    assert json.loads(judged.read_text()) == {"total": 154.0, "step": 2.5}


def test_scaleout_packs_and_imports_the_importer_package(
    scaleout_environment: Environment, tmp_path: Path
) -> None:
    folder = package_folder("importer", tmp_path)
    packed = scaleout("package", "create", "-p", str(folder), "-o", str(tmp_path), home=tmp_path)
    assert packed.returncode == 0, packed.stderr
    assert (tmp_path / "package.tgz").stat().st_size > 500
    out = tmp_path / "out.npz"
    meta, judged, inferred, echoed = run_in(
        "scaleout", IMPORTED, str(folder), str(out), home=tmp_path, env=share(2.5, 7)
    )
    assert_equal_layers(layers_in(out), expected(1, (2.5, 7)))
    assert meta == {"training_metadata": {"num_examples": 7, "step": 2.5, "settings": {"epochs": 3}}}
    assert judged == {"total": 154.0, "step": 2.5}
    assert inferred == {"prediction": 154.0, "parameters": {}}
    assert echoed == {"echo": {"x": 1}}
