import prlhf_kit as kit
from prlhf_kit.models import hub
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
