"""Judgement of an exported model: is it the network, does it compute what was trained, how fast.

On an ONNX file, the network that it was made of, labelled images of one's own and nothing else:

    model = Path("model.onnx").read_bytes()
    check_identity(model)
    session = open_session(model, device="cpu")
    with torch.no_grad():
        logits = network(torch.from_numpy(images)).numpy()
    verdict = judge(model, session, Reference(images, labels, logits))
    latencies = time_modes(session, TimingPlan(batches=(1, 8), max_p99_ms=50.0, gated_batch=1))
    print(verdict.accuracy["onnx"], latencies.of(1, "host").percentile_ms(99))

Whatever is wrong is raised as ``ValidationFailedError``.
"""
