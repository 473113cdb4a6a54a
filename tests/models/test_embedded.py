"""The embedded model."""

import multiprocessing
import os

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


def _convert_in_process(cache):
    def fake(gguf, out):  # stands in for the 30-second conversion: the race is what is tested
        out.mkdir()
        (out / "weights").write_text("w")
        with (embedded.cache_dir() / "conversions").open("a") as f:
            f.write("x")

    os.environ["PRLHF_KIT_CACHE"] = str(cache)
    embedded._convert = fake
    embedded.embedded_folder()


def test_racing_processes_convert_once(tmp_path):
    context = multiprocessing.get_context("fork")  # spawned ones would import torch first
    racers = [context.Process(target=_convert_in_process, args=(tmp_path,)) for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
        assert racer.exitcode == 0
    assert (tmp_path / "conversions").read_text() == "x"
    assert (tmp_path / EMBEDDED / "weights").read_text() == "w"
    assert not list(tmp_path.glob(".*-unfinished")), "no half-written folder is left"
