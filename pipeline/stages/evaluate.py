"""Evaluate: the trained network's accuracy in torch, on the test or on held-out images.

For studies, which compare networks and deploy none: no model file, no latency. The command
``d2nas evaluate`` is another thing: it scores a bundle on a labelled folder.
"""

from d2nas.config.section import Positive
from d2nas.files.strict_json import canonical_json

from ..store.forms import Form, Number, read_form
from .retrain import PREPROCESS_FILE
from .stage import Context, Facts, Stage, always

EVALUATION_FILE = "evaluation.json"


def run(context: Context) -> Facts:
    """Write ``evaluation.json``: accuracy (a fraction), images, which ones, and their digest.

    The images are normalised as the retraining did it. ``retrain.device`` says where this runs.
    """
    from d2nas.data.images import Normalizer
    from d2nas.measure.calibration import calibrated_loss
    from d2nas.nn.network import load_network
    from d2nas.train.loop import EVALUATION_BATCH, accuracy, memory_errors, predict, torch_device

    from ..onnx_io.preparation import Preprocess

    config = context.config
    device = torch_device(config.retrain.device)
    data = context.data()
    retrained = context.inputs["retrain"]
    prepared = read_form(Preprocess, retrained, PREPROCESS_FILE)
    normalizer = Normalizer(tuple(prepared.mean), tuple(prepared.std))
    context.hooks.begin(1, 0, "evaluation")
    with memory_errors(EVALUATION_BATCH, device):
        network = load_network(retrained.path).to(device).eval()
        logits = predict(network, data.test.to(device), normalizer, seed=config.run.seed)
    loss, temperature = calibrated_loss(logits, data.test.labels_N)
    evaluation = {
        "accuracy": accuracy(logits, data.test.labels_N),
        "calibrated_loss": loss,
        "temperature": temperature,
        "images": len(data.test),
        "evaluation": data.evaluation,
        "data_digest": data.digest,
    }
    context.work.write(EVALUATION_FILE, canonical_json(evaluation))
    context.hooks.advance(1, None)
    context.hooks.say(
        f"evaluate on {device}: accuracy {evaluation['accuracy']:.4f}, calibrated loss {loss:.4f} "
        f"on {len(data.test)} {data.evaluation} images"
    )
    return {"device": device.type, **evaluation}


class _Facts(Form):
    accuracy: Number
    calibrated_loss: Number | None = None
    images: Positive
    evaluation: str


STAGE = Stage(
    name="evaluate",
    parents=("retrain",),
    code_schema=3,
    run=run,
    reads_data=always,
    facts=_Facts,
    rebuild="run {run} is of a study, rebuild it with: d2nas study FILE --fresh",
)
