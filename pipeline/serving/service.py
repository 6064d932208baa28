"""A model that answers requests: warm-up, readiness, and one answer at a time for each worker.

Knows bytes and sessions, not HTTP. Its methods are called from worker threads; one session may be
run by several threads at once.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2nas._version import __version__
from d2nas.data.decoding import decode_image
from d2nas.errors import ConfigError, D2NasError, OutOfMemoryError
from d2nas.measure.scores import softmax

from ..bundle.reader import Bundle
from ..onnx_io import INPUT_NAME, OUTPUT_NAME
from ..onnx_io.model_file import ModelDescription
from ..onnx_io.preparation import decoding_of, prepare_pixels
from ..onnx_io.session import OnnxSession
from .protocol import (
    Answer,
    RequestError,
    Signature,
    Times,
    encode_answer,
    encode_json,
    parse_request,
)

TOP = 5
"""Classes that are told of a picture."""
MAX_PIXELS = 12_500_000
"""Of a picture, which takes up to 20 bytes a pixel while it is decoded and converted (16-bit grey),
so 250 MB for each worker.
"""
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP")
"""No TIFF, whose tiles may be larger than the picture."""
_DATATYPES = {"float32": "FP32", "uint8": "UINT8"}


def signature_of(description: ModelDescription, max_batch: int) -> Signature:
    """Return what the protocol calls the input and output of a model."""
    datatype = _DATATYPES[description.input_type]
    return Signature(datatype, description.array_shape, description.num_classes, max_batch)


def _timed(answer: Answer, images: int, times: Sequence[int]) -> Answer:
    """Return an answer with its times: it was begun, read, computed, and is written now."""
    began, read, computed = times
    writing = time.perf_counter_ns() - computed
    return replace(answer, times=Times(images, began, read - began, computed - read, writing))


class InferenceService:
    """One version of one model on a device that its session was checked to use."""

    def __init__(self, bundle: Bundle, session: OnnxSession) -> None:
        self.name, self.version = bundle.name, str(bundle.number)
        self.signature = signature_of(bundle.description, bundle.max_batch)
        self._digest = bundle.digest
        self._labels, self._preprocess = bundle.labels, bundle.preprocess
        self._session = session
        self._problem: str | None = "the model is warming up"

    @property
    def problem(self) -> str | None:
        """Why the model is not ready, in one line; None if it is."""
        return self._problem

    @property
    def device(self) -> str:
        """The device in words, for example ``CPU AMD EPYC, 2 threads``."""
        return self._session.device.label

    def warm_up(self) -> None:
        """Run batch 1 and the largest batch; then the model is ready.

        At a new shape a device first chooses its kernels and takes its memory. Raises
        ``OutOfMemoryError`` and ``ValidationFailedError``, and stays not ready.
        """
        for batch in dict.fromkeys((1, self.signature.max_batch)):
            shape = (batch, *self.signature.image_shape)
            self._session.run(np.zeros(shape, self._session.description.dtype))
        self._problem = None

    def check_model(self, name: str, version: str | None) -> None:
        """Raise ``RequestError`` (404) for another model or version than the one served."""
        if name != self.name:
            raise RequestError(404, f"there is no model {ascii(name)[:60]}, expected {self.name}")
        if version is not None and version != self.version:
            raise RequestError(
                404,
                f"model {self.name} has no version {ascii(version)[:60]}, expected {self.version}",
            )

    def check_ready(self) -> None:
        """Raise ``RequestError`` (503) saying why the model is not ready, if it is not."""
        if self._problem is not None:
            raise RequestError(503, self._problem)

    def answer(self, body: bytes, header_length: str | None) -> Answer:
        """Return the answer to a request, or raise ``RequestError`` saying why there is none."""
        times = [time.perf_counter_ns()]
        self.check_ready()
        request = parse_request(body, header_length, self.signature)
        times.append(time.perf_counter_ns())
        logits = self._run(request.images)
        times.append(time.perf_counter_ns())
        answer = encode_answer(logits, request, self.name, self.version)
        return _timed(answer, len(logits), times)

    def classify(self, content: bytes) -> Answer:
        """Return the most probable classes of a picture, the bytes of a file, prepared as in
        training; raises as ``answer``.
        """
        times = [time.perf_counter_ns()]
        self.check_ready()
        try:
            pixels = decode_image(
                content,
                decoding_of(self._preprocess),
                what="the picture",
                formats=PICTURE_FORMATS,
                max_pixels=MAX_PIXELS,
            )
        except ConfigError as error:
            raise RequestError(400, str(error)) from error
        images = prepare_pixels(pixels[None], self._preprocess)
        times.append(time.perf_counter_ns())
        (probabilities,) = softmax(self._run(images))
        times.append(time.perf_counter_ns())
        best = np.argsort(-probabilities, kind="stable")[:TOP]
        body = {
            "model_name": self.name,
            "model_version": self.version,
            "predictions": [
                {"class": self._labels[index], "probability": float(probabilities[index])}
                for index in best
            ],
        }
        return _timed(Answer(encode_json(body), None), 1, times)

    def _run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Return the logits of images, or raise ``RequestError``."""
        try:
            return self._session.run(images)
        except OutOfMemoryError as error:
            raise RequestError(503, str(error)) from error
        except D2NasError as error:
            # The runtime fails at a request that is right, or left its device: what it would say
            # from now on is not what was validated.
            self._problem = str(error)
            raise RequestError(500, str(error)) from error

    def server_metadata(self) -> dict[str, Any]:
        """Return what ``/v2`` says; ``provider`` and ``device`` are our own keys."""
        return {
            "name": "d2nas",
            "version": __version__,
            "extensions": ["binary_tensor_data", "statistics"],
            **self._place(),
        }

    def model_metadata(self) -> dict[str, Any]:
        """Return what ``/v2/models/NAME`` says; ``parameters`` holds what the protocol lacks."""
        signature = self.signature
        images = {
            "name": INPUT_NAME,
            "datatype": signature.datatype,
            "shape": [-1, *signature.image_shape],
        }
        logits = {"name": OUTPUT_NAME, "datatype": "FP32", "shape": [-1, signature.num_classes]}
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": "onnxruntime_onnx",
            "inputs": [images],
            "outputs": [logits],
            "parameters": {
                **self._place(),
                "max_batch": signature.max_batch,
                "bundle_digest": self._digest,
            },
        }

    def _place(self) -> dict[str, Any]:
        return {"provider": self._session.provider, "device": self.device}
