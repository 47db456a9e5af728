"""The benchmark's own arithmetic, and its rows at micro size on a CPU; its results on a GPU are in docs/speed.md."""

import gc
import json
import os
import re
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from leaving import refused
from micro import fresh_checkpoint, micro_config, sketched_config, told_config
from nightly import at_night

from imprint.checkpoint import save_checkpoint
from imprint.config import PRESETS
from imprint.pipeline import ImprintPipeline
from training import benchmark
from training.arguments import parse
from training.loop import run as train
from training.measure import speed, speed_inference, speed_inputs, speed_trial
from training.measure.settings import ROW_FORMS, Benchmark
from training.measure.speed import Bench, busy
from training.measure.speed_report import COLUMNS

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def micro_preset(monkeypatch):
    monkeypatch.setitem(PRESETS, "micro", micro_config())
    monkeypatch.setattr(speed, "BLOCK", 1)
    monkeypatch.setattr(speed_trial, "BLOCK", 1)
    monkeypatch.setattr(speed_inference, "STEPS", 4)
    monkeypatch.setattr(speed_inference, "WINDOWS", 2)


@pytest.fixture
def bench(tmp_path):
    return Bench(parse(Benchmark, ["--output", str(tmp_path), "--cpu", "--steps", "4"], None))


def run(folder: Path, *words: str) -> dict[str, dict]:
    """The rows that the command wrote, by name."""
    benchmark.main(["--output", str(folder), "--cpu", "--steps", "4", *words])
    return {row["row"]: row for row in json.loads((folder / "benchmark.json").read_text())["rows"]}


def test_rows_are_measured_and_an_error_stands_in_its_place(tmp_path, capsys, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    names = ["peak", "step:micro:2:eager", "kernels:micro:2:eager", "diffusers:micro:2", "loop:micro:2:eager"]
    names.append("composite:micro:2:eager")
    rows = run(tmp_path, "--rows", *names)
    assert list(rows) == names
    peak, step, kernels, diffusers, loop, composite = rows.values()
    assert peak["tflops"] > 0 and peak["copy_tb_per_second"] > 0
    assert step["tflops"] == pytest.approx(step["pictures_per_second"] * step["tflop_per_picture"])
    assert "needs a CUDA device" in kernels["error"] and "--baseline" in diffusers["error"]
    assert loop["pictures_per_second"] > 0 and loop["pairs_made_per_second"] > 0 and loop["reuse"] == 8
    assert all(row["spread"] >= 0 for row in (step, loop, composite)) and "buckets" not in step
    steps = speed_inference.STEPS * composite["ms_per_step"] / 1e3
    assert 0 < composite["model_ms_per_step"] and steps < 10 / composite["pictures_per_second"]  # on a busy machine too
    text = (tmp_path / "benchmark.md").read_text()
    assert text in capsys.readouterr().out and "needs a CUDA device" in text
    (line,) = (line for line in text.splitlines() if line.startswith("| `step:micro:2:eager`"))
    assert len(line.split(" | ")) == len(COLUMNS.split(" | ")) and f"| {step['spread']:.1%} |" in line
    assert f"{os.cpu_count()} cores, PyTorch {torch.__version__}" in text
    gc.collect()
    assert not [*scratch.glob("benchmark-*")], "a run's pictures and weights stay behind"


def test_the_composites_that_are_measured_are_those_of_the_words(tmp_path, monkeypatch):
    """As many results, in one call, compiled in this mode: the picture's own call, complete."""
    calls, call, modes = [], ImprintPipeline.__call__, []
    monkeypatch.setattr(
        ImprintPipeline, "__call__", lambda *given, **named: calls.append(named) or call(*given, **named)
    )
    monkeypatch.setattr(ImprintPipeline, "compile", lambda pipeline, mode: modes.append(mode))
    row = run(tmp_path, "--rows", "composite:micro:3:reduce-overhead")["composite:micro:3:reduce-overhead"]
    assert modes == ["reduce-overhead"] and len(calls) == 1 + speed_inference.WINDOWS + 2
    assert row["difference_of_255"] == 0 and row["prepare_ms"] > 0 and row["finish_ms"] > 0
    assert {named["num_results"] for named in calls} == {3} and {named["fit"] for named in calls} == {"fill"}


@pytest.mark.parametrize("config", [sketched_config, told_config])
def test_composites_of_the_sizes_that_a_file_says(tmp_path, config):
    """Including every input of these models in a step, in a batch of two as in one."""
    save_checkpoint(tmp_path / "other.safetensors", fresh_checkpoint(config()))
    names = [f"composite:{tmp_path / 'other.safetensors'}:{results}:eager" for results in (1, 2)]
    for row in run(tmp_path, "--rows", *names).values():
        assert row["ms_per_step"] > 0 and row["model_ms_per_step"] > 0, row


def test_the_baseline_is_for_sd_15_s_sizes(tmp_path):
    row = run(tmp_path, "--baseline", str(tmp_path), "--rows", "diffusers:sdxl:1")["diffusers:sdxl:1"]
    assert "does not train SDXL" in row["error"]


def test_a_run_that_failed_is_not_tried_again(tmp_path, monkeypatch):
    tries = []

    def fail(*_):
        tries.append(1)
        raise RuntimeError("no code for this block")

    monkeypatch.setattr(train.Run, "step", fail)
    first, second = run(tmp_path, "--rows", "step:micro:2:eager", "loop:micro:2:eager").values()
    assert first["error"] == "RuntimeError: no code for this block" and "a row before it failed" in second["error"]
    assert len(tries) == 1


def test_operations_are_those_of_the_step(bench):
    """Twice the batch gives the same operations per picture; there are more than the matrix products of the UNet's
    three passes.
    """
    counts = []
    for batch in (1, 2):
        run = bench.prepare("micro", batch, "eager")
        counts.append(bench.count_operations())
    assert counts[0] == pytest.approx(counts[1], rel=1e-3)
    weights = sum(p.numel() for name, p in run.raw.unet.named_parameters() if p.ndim == 2 and "time" not in name)
    assert counts[0] > 3 * 2 * weights


def test_the_time_limit_keeps_what_there_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Bench, "row_peak", lambda self: {"tflops": 1.0, "copy_tb_per_second": 1.0})
    monkeypatch.setattr(Bench, "row_step", lambda self, *words: time.sleep(60))
    began = time.monotonic()
    assert list(run(tmp_path, "--time-limit", "1", "--rows", "peak", "step:micro:2:eager")) == ["peak"]
    assert time.monotonic() - began < 30
    assert "stopped after 1 s, in row step:micro:2:eager" in capsys.readouterr().out


def test_an_unknown_row_is_refused(tmp_path):
    assert "rows are peak, step" in refused(run, tmp_path, "--rows", "nonsense:1")


def test_rows_are_of_the_forms_that_the_help_shows():
    for form in ROW_FORMS:
        assert hasattr(Bench, f"row_{form.partition(':')[0]}") and f"\n    {form}" in benchmark.__doc__


@pytest.mark.parametrize(
    "row",
    [
        *("peak:1", "step", "step:micro:2", "step:micro:2:eager:1", "step:tyni:2:eager", "step:micro:0:eager"),
        *("kernels:micro:two:eager", "loop:micro:-1:eager", "search:micro:2:graph", "memory:micro:all"),
        *("diffusers:micro:", "composite:tyni:1:eager", "composite:micro:1.5:eager", "composite:micro:1:fast"),
        *("gpus:micro:2:eager", "gpus:x:micro:2:eager"),
        *("step:micro:99999999999999999999:eager", f"composite:micro:{'9' * 5000}:eager", "loop:micro:\u0663:eager"),
    ],
)
def test_a_malformed_row_is_a_sentence_before_any_is_measured(tmp_path, row):
    said = refused(run, tmp_path / "out", "--rows", "peak", row)
    (form,) = (form for form in ROW_FORMS if form.partition(":")[0] == row.partition(":")[0])
    assert f"'{row}' is not of the form {form};" in said and said.endswith("whole numbers from 1 to 99999\n")
    assert not (tmp_path / "out").exists()


EXAMPLE = """
import sys, time
arguments = dict(zip(sys.argv[1:], sys.argv[2:]))
assert arguments["--train_batch_size"] == "3" and arguments["--resolution"] == "64"
from tqdm import tqdm
for step in tqdm(range(int(arguments["--max_train_steps"]))):
    time.sleep(0.05)
    if step == {last}:
        sys.exit("no more pictures")
"""


@pytest.mark.parametrize("last", [10_000, 2])
def test_the_example_is_timed_by_its_own_bar(tmp_path, monkeypatch, last):
    """A stand-in for diffusers' script takes 50 ms a step; one that ends early is an error with its last words."""
    monkeypatch.setattr(speed, "write_diffusers_model", lambda folder, config, device: None)
    script = tmp_path / "example.py"
    script.write_text(EXAMPLE.format(last=last))
    row = run(tmp_path, "--baseline", str(script), "--rows", "diffusers:micro:3")["diffusers:micro:3"]
    if last == 2:
        assert "ended early" in row["error"] and "no more pictures" in (tmp_path / "diffusers.log").read_text()
    else:
        assert 20 < row["pictures_per_second"] <= 3 / 0.05 * 1.02


def test_the_example_s_model_is_stable_diffusion_of_the_same_unet(tmp_path, monkeypatch):
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    monkeypatch.setattr(speed_inputs, "build_autoencoder", lambda config: AutoencoderKL(block_out_channels=(32,)))
    speed_inputs.write_diffusers_model(tmp_path, micro_config(), torch.device("cpu"))
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert unet.config.block_out_channels == [32, 64] and unet.config.in_channels == unet.config.out_channels == 4
    assert AutoencoderKL.from_pretrained(tmp_path / "vae").config.block_out_channels == [32]
    assert DDPMScheduler.from_pretrained(tmp_path / "scheduler").config.beta_schedule == "scaled_linear"
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    tokens = tokenizer(["a photo"], max_length=tokenizer.model_max_length, padding="max_length", return_tensors="pt")
    text = CLIPTextModel.from_pretrained(tmp_path / "text_encoder")(tokens.input_ids)[0]
    assert text.shape == (1, 77, 32)


def test_compiled_parts_learn_what_eager_ones_do(bench, monkeypatch):
    """Traced and differentiated, the UNet as a whole, without the code generator, which is PyTorch's to test."""
    compiled, compile_one = [], torch.nn.Module.compile

    def traced(part, mode=None, dynamic=None):
        compiled.append(part)
        compile_one(part, backend="aot_eager", dynamic=dynamic)

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    seen = []
    for mode in ("eager", "default"):
        run = bench.prepare("micro", 2, mode)
        assert bool(compiled) == (mode == "default")
        for index in range(2):
            bench.step(index)
            seen.append(bench.meter.totals.tolist())
    assert compiled == [run.raw.adapter, run.raw.unet, run.autoencoder.encoder]  # and not the frozen ID encoder
    assert seen[2] == pytest.approx(seen[0], rel=1e-4) and seen[3] == pytest.approx(seen[1], rel=1e-3)


def test_a_frozen_encoder_s_tokens_are_made_once_a_block(bench):
    run = bench.prepare("micro", 2, "eager")
    tokens = bench.source.batch(0).reference
    bench.source.tokens, bench.source.block = None, None
    pictures = bench.source.batch(0).reference
    assert pictures.dtype == torch.uint8 and torch.equal(tokens, run.raw.tokens(pictures))
    assert torch.equal(run.raw.context(tokens), run.raw.context(pictures))
    for parameter in run.raw.encoder.parameters():
        parameter.requires_grad_(True)
    assert run.source().tokens is None


def test_the_largest_batch_is_searched(bench, monkeypatch):
    for limit, guess in ((1, 1), (5, 7), (70, 70), (96, 105), (0, 2)):
        monkeypatch.setattr(bench, "try_batch", lambda run, pairs, size, limit=limit: size <= limit)
        found = bench.largest(None, None, guess)
        assert found["fits"] <= limit < found["fails"] and found["fails"] - found["fits"] <= max(1, guess // 32)


def test_busy_is_the_union_of_what_runs():
    kernels = [("a", 0.0, 400.0), ("b", 100.0, 200.0), ("c", 300.0, 500.0), ("d", 900.0, 1000.0)]
    assert busy(kernels) == {"busy": pytest.approx(0.6), "longest_gap_ms": pytest.approx(0.4)}


@pytest.mark.parametrize(
    ("kernel", "group"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3", "attention"),
        ("sm90_xmma_wgrad_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc", "convolution"),
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NTN", "matrix product"),
        ("triton_red_fused_native_group_norm_silu_3", "compiled (norms, activations, sums)"),
        (
            "void at::native::(anonymous)::multi_tensor_apply_kernel<FusedAdamMathFunctor>",
            "optimiser, average, gradient norm",
        ),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("void at::native::vectorized_elementwise_kernel<4, GeluFunctor>", "other"),
    ],
)
def test_kernels_are_grouped(kernel, group):
    assert next(name for name, pattern in speed.KERNELS.items() if re.search(pattern, kernel, re.IGNORECASE)) == group


def test_ratio_comes_from_the_rows(bench):
    bench.rows = [
        {"row": "peak", "tflops": 800.0, "copy_tb_per_second": 4.0},
        {"row": "diffusers:sd15:16", "pictures_per_second": 50.0},
        {"row": "step:sd15:16:default", "pictures_per_second": 125.0, "tflop_per_picture": 2.4, "tflops": 300.0},
        {"row": "loop:sd15:16:default", "pictures_per_second": 100.0, "state_gib": 16.0},
    ]
    bench.write()
    text = (bench.options.output / "benchmark.md").read_text()
    assert "| `step:sd15:16:default` | 125.0 |  |  |  |  | 2.50 |  | 2.40 | 37.5% |" in text
    assert "| `loop:sd15:16:default` | 100.0 |  |  |  |  | 2.00 |" in text


SLEEP = 0.2

WORKER = """
import sys, time
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from micro import micro_config
from imprint.config import PRESETS
from training import benchmark
from training.loop.run import Run
from training.measure import speed, speed_trial
PRESETS["micro"], speed.BLOCK, speed_trial.BLOCK, speed.CYCLES = micro_config(), 1, 1, 1
real, said = Run.step, []
def step(run, source, index, meter):
    # A step of the length that the test says, on which the second process takes half as long again.
    if isinstance(source, speed_trial.Again) or not {sleeps}:
        assert len(said) >= 3 or not {sleeps}, "counted before the steps that are timed"
        return real(run, source, index, meter)
    said.append(index)
    time.sleep({sleep} * (1 + 0.5 * run.accelerator.process_index))
Run.step = step
benchmark.main(sys.argv[1:])
"""


def worker(folder: Path, sleeps: bool) -> tuple[str]:
    """One of several processes: the benchmark with the micro model, and with steps that only sleep."""
    script, paths = folder / "worker.py", [str(ROOT), str(ROOT / "tests")]
    script.write_text(WORKER.format(paths=paths, sleeps=sleeps, sleep=SLEEP))
    return (str(script),)


def test_several_processes_through_torchrun(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "SELF", worker(tmp_path, sleeps=False))
    rows = run(tmp_path, "--rows", "step:micro:2:eager", "gpus:2:micro:2:eager")
    one, two = rows.values()
    assert two["step_times_one"] == pytest.approx(two["step_pictures_per_second"] / one["pictures_per_second"])
    assert two["loop_pictures_per_second"] > 0 and "loop_times_one" not in two  # nothing to compare with
    assert two["step_buckets"] >= 1 and two["step_exchange_ms"] > 0
    table = (tmp_path / "benchmark.md").read_text().splitlines()
    (line,) = (line for line in table if line.startswith("| `gpus:2:micro:2:eager step` | "))
    assert line.split(" | ")[2] == f"{two['step_spread']:.1%}" and f" | {two['step_times_one']:.2f} | " in line


@at_night
def test_the_pictures_of_all_processes_count_by_the_slowest_of_them(tmp_path, monkeypatch):
    """Two pictures a step in each of two processes, the slower of which takes 1.5 times as long."""
    monkeypatch.setattr(speed, "SELF", worker(tmp_path, sleeps=True))
    (two,) = run(tmp_path, "--rows", "gpus:2:micro:2:eager").values()
    assert two["step_pictures_per_second"] == pytest.approx(2 * 2 / (1.5 * SLEEP), rel=0.2)


def test_processes_end_with_the_row_that_started_them(tmp_path):
    """Those of torchrun too, which are in groups of their own: on a GPU they would slow down the rows after it."""
    script = tmp_path / "worker.py"
    script.write_text("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    with speed.started([sys.executable, *launcher], {"OMP_NUM_THREADS": "1"}) as process:
        numbers = [int(process.stdout.readline()) for _ in range(2)]
    for number in numbers:
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


def test_operations_are_counted_without_a_word_to_the_other_processes(bench, monkeypatch):
    """DDP builds its buckets in the first step that exchanges gradients, so that must be one of the timed steps."""
    order, run_step, no_sync = [], train.Run.step, Accelerator.no_sync

    @contextmanager
    def alone(accelerator, model):
        order.append("alone")
        with no_sync(accelerator, model):
            yield

    monkeypatch.setattr(Accelerator, "no_sync", alone)
    monkeypatch.setattr(
        train.Run,
        "step",
        lambda run, source, index, meter: (
            order.append("count" if isinstance(source, speed_trial.Again) else "step"),
            run_step(run, source, index, meter),
        ),
    )
    bench.row_step("micro", "2", "eager")
    assert order == ["step"] * (3 + bench.options.steps) + ["alone", "count"]
