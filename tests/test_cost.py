"""The cost formulas of `benchmarks/cost.py` against real models, and the pages and notebooks that quote them."""

import importlib
import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

import prlhf_kit as kit
from prlhf_kit import cli
from prlhf_kit.evaluation.outside import for_run, read_answers
from prlhf_kit.models.user_models import USER_MODELS
from prlhf_kit.runs import parameters

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "scale.md"
sys.path.insert(0, str(ROOT / "benchmarks"))
cost, cost_check = (importlib.import_module(name) for name in ("cost", "cost_check"))

SMALL = {"prompt": 24, "response": 12, "width": 128, "alpha": 1.0, "train": "lora", "share_prompt": True}
CHANGES = [{}, {"alpha": 0.5}, {"train": "full"}, {"share_prompt": False}, {"response": 30}, {"prompt": 60}]


@pytest.fixture
def make_step(tokenizer):
    return lambda **change: cost_check.Step(**(SMALL | change), tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("SmolLM2-135M", 134_515_008),
        ("Llama-3.2-1B", 1_235_814_400),
        ("Qwen2.5-7B", 7_615_616_512),
        ("Llama-3.1-8B", 8_030_261_248),
    ],
)
def test_parameters_are_the_published_ones(name, published):
    assert cost.MODELS[name].parameters == published


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(
            vocab_size=50,
            hidden_size=48,
            intermediate_size=40,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
        ),
        LlamaConfig(
            vocab_size=50,
            hidden_size=48,
            intermediate_size=40,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=8,
            tie_word_embeddings=True,
        ),
        Qwen2Config(
            vocab_size=50,
            hidden_size=48,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        ),
    ],
    ids=["llama", "llama tied", "qwen2"],
)
@pytest.mark.parametrize("targets", [("q", "v"), cost.EVERY_MAP], ids=["q and v", "all"])
def test_parameters_and_adapter_are_those_of_a_real_model(config, targets):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        formula = cost.Model.of(config)
        assert formula.parameters == model.num_parameters()
        wrapped = get_peft_model(model, LoraConfig(r=5, target_modules=[f"{name}_proj" for name in targets]))
    assert cost.adapter(formula, 5, targets) == wrapped.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize(
    ("kind", "options"), [("individual", {}), ("cluster", {"clusters": 6}), ("low_rank", {"rank": 6})]
)
def test_user_tables(kind, options):
    table = USER_MODELS[kind](8, torch.randn(20, 16), num_tokens=3, **options)
    assert cost.user_table(kind, 7, 3, 16, of=6) == sum(p.numel() for p in table.parameters())


def _counted(count):
    """A formula of torch's own, for an operator that it does not count itself."""
    formula = lambda *args, **kwargs: count(*args, **kwargs)  # noqa: E731
    formula._get_raw = True
    return formula


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_flops_are_those_that_torch_counts(make_step, change):
    aten = torch.ops.aten
    flash, cpu = "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu"
    same = {f"{cpu}{end}": f"{flash}{end}" for end in ("", "_backward")} | {"addmm_": "addmm"}
    more = {getattr(aten, ours): _counted(flop_registry[getattr(aten, known)]) for ours, known in same.items()}
    step = make_step(**change)
    with FlopCounterMode(display=False, custom_mapping=more) as counter:
        step.loss().backward()
    assert counter.get_total_flops() == step.flops()


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_what_is_kept_for_the_backward_pass(make_step, change):
    counted, formula = make_step(**change).kept()
    assert counted == pytest.approx(formula, rel=0.1)


def test_bytes_of_a_training_and_of_what_it_saves(make_tiny, tokenizer, pairs, tmp_path):
    model = make_tiny(users=3)
    formula, width = cost.Model.of(model.config), model.config.hidden_size
    settings = {
        "output_dir": str(tmp_path / "c"),
        "report_to": "none",
        "use_cpu": True,
        "max_steps": 1,
        "save_strategy": "no",
        "max_length": None,
    }
    trainer = kit.PersonalizedDPOTrainer(
        model,
        kit.PersonalizedDPOConfig(**settings),
        pairs,
        None,
        tokenizer,
        kit.UserIndex(["a", "b", "c"]),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    trainer.train()
    adapter, table = cost.adapter(formula, 4), cost.user_table("individual", 3, 3, width)
    named = dict(trainer.model.named_parameters())
    trained = [p for p in named.values() if p.requires_grad]
    values = sum(p.nbytes for name, p in named.items() if p.requires_grad or ".original_module." in name)
    states = [s for p in trained for s in trainer.optimizer.state[p].values() if s.dim()]
    found = values + sum(p.nbytes for p in trained) + sum(s.nbytes for s in states)  # gradients are like the values
    assert found == cost.training_bytes(adapter) + cost.training_bytes(table, 5)
    kit.save_personalized(trainer.model, trainer.user_index, tmp_path / "saved")
    saved = (tmp_path / "saved" / "adapter_model.safetensors").read_bytes()
    assert len(saved) - 8 - int.from_bytes(saved[:8], "little") == 4 * (adapter + table)


def test_the_page_has_the_tables_that_the_script_prints():
    text = PAGE.read_text()
    for name, table in cost.tables().items():
        assert table in text, f"the table {name!r} is another: python benchmarks/cost.py --markdown"
    kept = json.loads(cost.MEASURED.read_text())
    assert set(cost.CHANGED) == set(cost_check.CHANGES)
    machine = kept["machine"]
    for said in (
        kept["measured"][:10],
        machine["cpu"],
        f"{machine['milliseconds_a_layer']:.2f} ms of processor time",
        f"medians of {kept['n']['repeats']}\n",
    ):
        assert said in text, f"docs/scale.md does not say {said!r}, as {cost.MEASURED} does"


def _commands(page, *programs):
    """What follows one of `programs` in the lines of the page's fences, as arguments."""
    fences = re.findall(r"^```bash[^\n]*\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    found = []
    for line in "\n".join(fences).replace("\\\n", " ").replace("$RANK", "1").splitlines():
        words = shlex.split(line.split(" > ")[0], comments=True)
        at = next((i for i, word in enumerate(words) if word in programs), None)
        if at is not None and words[0] != "cd" and words[:2] != ["docker", "build"]:
            found.append(words[at + 1 :])
    return found


def test_commands_of_the_page_are_understood():
    found = _commands(PAGE, "prlhf", ".venv/bin/prlhf", "prlhf_kit")  # the last is the container's image
    assert [words[0] for words in found].count("run") == 5
    assert {words[0] for words in found} == {"run", "sweep", "report", "data", "bundle"}
    for words in found:
        args = cli.parser().parse_args(words)
        for notebook in getattr(args, "notebooks", []):
            assert set(dict(args.parameter or [])) <= {
                name for n in args.notebooks for name in parameters.defaults(ROOT / n)
            }
            assert (ROOT / notebook).is_file()
    [words] = _commands(PAGE, "accelerate")
    args = launch_command_parser().parse_args(words[1:])
    assert (ROOT / args.config_file).is_file()
    assert args.training_script == "prlhf_kit.training.recipe"


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda n: n.stem)
def test_notebook_says_how_long_it_takes(notebook):
    first = nbformat.read(notebook, as_version=4).cells[0].source
    lines = [line for line in first.splitlines() if line.startswith("*Expected time: ")]
    assert len(lines) == 1
    said = re.match(r"\*Expected time: [^*]+ on one CPU core[^*]*; on one GPU ([^*]+)\*", lines[0])
    assert said, lines[0]
    assert "not measured" in said[1] or "not used" in said[1]


def test_answers_of_the_pages_script_are_read(tmp_path, monkeypatch):
    [script] = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)

    class LLM:  # what the script asks of vLLM
        def __init__(self, model, **options):
            pass

        def chat(self, chats, params):
            assert params["max_tokens"] > 0
            said = [SimpleNamespace(text=f"You asked: {chat[-1]['content']}") for chat in chats]
            return [SimpleNamespace(outputs=[answer]) for answer in said]

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=dict))
    monkeypatch.chdir(tmp_path)
    stage = tmp_path / "papermill_runs" / "big" / "05_evaluation"
    stage.mkdir(parents=True)
    pd.DataFrame({"prompt": ["Why?", "How?", "Why?"]}).to_parquet(stage / "answers.parquet")
    exec(compile(script, "answer.py", "exec"), {})
    found = for_run(read_answers("answers.json", system="Llama 8B"), ["ann", "bob"], ["Why?", "How?"])
    assert sorted(found.answer) == ["You asked: How?"] * 2 + ["You asked: Why?"] * 2


def test_image_is_made_of_what_is_there_and_runs_as_nobody_special():
    lines = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text()).splitlines()
    steps = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    copied = [name for what, rest in steps if what == "COPY" for name in rest.split()[:-1]]
    left_out = (ROOT / ".dockerignore").read_text().splitlines()
    for name in copied:
        assert (ROOT / name).exists()
        assert name not in left_out
    order = [what for what, _ in steps]
    assert "USER" not in order[: len(order) - 1 - order[::-1].index("RUN")]
    assert [rest for what, rest in steps if what == "USER"] == ["kit"]
    assert {"pyproject.toml", "constraints.txt", "prlhf_kit", "notebooks", "configs"} <= set(copied)
