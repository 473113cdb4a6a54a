"""The embedded model."""

import json
import multiprocessing

import prlhf_kit as kit
from prlhf_kit.models import embedded, hub
from prlhf_kit.models.embedded import EMBEDDED


def test_embedded_model_answers():
    """The real model, once: it loads, its template works, and its answer is language about the question."""
    model, tokenizer = kit.load_model(device="cpu"), kit.load_tokenizer()
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert hub.name_of(model) == EMBEDDED
    [answer] = kit.generate(
        model, tokenizer, [[{"role": "user", "content": "What is the capital of France?"}]], max_new_tokens=12
    )
    assert "Paris" in answer


def _fake_convert(gguf, out):
    """Stands in for the 30-second conversion: the race and the checksums are what is tested."""
    (out / "weights").write_text("w")
    with (embedded.cache_dir() / "conversions").open("a") as f:
        f.write("x")
    (out / embedded.CHECKSUMS).write_text(json.dumps({"weights": hub.sha256(out / "weights")}))


def _convert_in_process(cache):
    import os

    os.environ["PRLHF_KIT_CACHE"] = str(cache)
    embedded._convert = _fake_convert
    embedded.embedded_folder()


def test_racing_processes_convert_once_and_damage_is_mended(tmp_path, monkeypatch):
    context = multiprocessing.get_context("fork")  # spawned ones would import torch first
    racers = [context.Process(target=_convert_in_process, args=(tmp_path,)) for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
        assert racer.exitcode == 0
    assert (tmp_path / "conversions").read_text() == "x"
    monkeypatch.setenv("PRLHF_KIT_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_convert", _fake_convert)
    folder = embedded.embedded_folder()
    assert (folder / "weights").read_text() == "w"
    (folder / "weights").write_text("damaged")
    embedded._verified.discard(folder)
    assert (embedded.embedded_folder() / "weights").read_text() == "w"
    assert (tmp_path / "conversions").read_text() == "xx"
    assert not list(tmp_path.glob(".*-*")), "no half-written folder is left"
