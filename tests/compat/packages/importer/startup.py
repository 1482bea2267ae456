from scaleoututil.helpers.helpers import get_helper
from scaleoututil.utils.model import ScaleoutModel

import model as project


def startup(client):
    """Registers what this client can do."""
    helper = get_helper("numpyhelper")

    def layers_of(given):
        return {str(i): layer for i, layer in enumerate(given.get_training_model(helper))}

    def train(given, settings):
        project.wait_for_gate(client.check_task_abort)
        layers, metadata = project.trained(layers_of(given))
        client.log_metric({"training_step": metadata["step"]})
        client.log_attributes({"step": str(metadata["step"])})
        made = ScaleoutModel.from_training_model(list(layers.values()), helper)
        return made, {"training_metadata": {**metadata, "settings": settings}}

    def validate(given):
        return project.measured(layers_of(given))

    def infer(given, parameters):
        found = {"prediction": project.measured(layers_of(given))["total"], "parameters": parameters}
        client.log_inference_result("prediction", found)  # what is returned stays here
        return found

    def echo(parameters):
        return {"echo": parameters}

    client.set_train_callback(train)
    client.set_validate_callback(validate)
    client.set_inference_callback(infer)
    client.set_custom_callback("echo", echo)
    print("the package has started", flush=True)
