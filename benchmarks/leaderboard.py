"""Bits per character on text that no one trains on, after the same minutes on the same machine: our recipes and peers.

    python benchmarks/leaderboard.py TRAINING.txt HELD_OUT.txt --recipes fables-10min [--minutes 10] [--seeds 1,2,3]
        [--nanogpt CHECKOUT] [--out leaderboard]

Ours is `train.py` as a user would call it. nanoGPT (a checkout of github.com/karpathy/nanoGPT) trains by its train.py
with the settings that its README gives for a CPU, on characters, for as many iterations as fit; the weights that are
best on a tenth of the training text count. Compressors get the training text, then the held-out text: what the second
adds. All are measured by one rule: the bits that it takes to reproduce the held-out file, over its characters
(`mini_transformer/evaluation`). They run one after the other, and a finished one is not run again. Writes
leaderboard.json and leaderboard.png (bits per character over time, of those that can be measured on the way).
"""

import argparse
import importlib.util
import json
import math
import os
import pickle
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mini_transformer.evaluation.likelihood import windows

ROOT = Path(__file__).resolve().parent.parent
# "I only have a macbook" in nanoGPT's README, but for the iterations, which fit the minutes
NANOGPT: dict[str, Any] = {
    "block_size": 64,
    "batch_size": 12,
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "dropout": 0.0,
    "learning_rate": 1e-3,
    "min_lr": 1e-4,
    "beta2": 0.99,
    "warmup_iters": 100,
    "gradient_accumulation_steps": 1,
    "eval_iters": 20,
    "log_interval": 50,
    "always_save_checkpoint": False,
    "device": "cpu",
    "compile": False,
}
COMPRESSORS = {
    "xz -9e": ["xz", "-9e", "--stdout"],
    "zstd --ultra -22": ["zstd", "--ultra", "-22", "--stdout", "--quiet"],
    "bzip2 -9": ["bzip2", "-9", "--stdout"],
}


def ours(recipe: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """One run of `train.py`, then `evaluate` on the held-out text."""
    out = given.out / f"{recipe}-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    train = [sys.executable, ROOT / "train.py", "--data", given.training, "--recipe", recipe, "--seed", seed]
    words = [*train, "--out-dir", out, *(["--max-minutes", given.minutes] if given.minutes else [])]
    started = time.monotonic()
    subprocess.run(list(map(str, words)), check=True)
    seconds = time.monotonic() - started
    evaluate = [sys.executable, "-m", "mini_transformer", "evaluate", "--model-dir", out, "--data", given.held_out]
    answer = subprocess.run([*map(str, evaluate), "--json"], check=True, capture_output=True, text=True, cwd=ROOT)
    return {"bits": json.loads(answer.stdout)["bits_per_character"], "seconds": seconds, "folder": out.name}


def nanogpt(seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """nanoGPT by its own train.py, on the characters of both texts (its vocabulary has no way to spell others)."""
    minutes = given.minutes or 10
    texts = [path.read_text(encoding="utf-8") for path in (given.training, given.held_out)]
    ids = {character: i for i, character in enumerate(sorted(set("".join(texts))))}
    training, held_out = (np.array([ids[c] for c in text], dtype=np.uint16) for text in texts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data" / "text").mkdir(parents=True)
        for script in ("train.py", "model.py", "configurator.py"):
            shutil.copy(given.nanogpt / script, folder)
        cut = len(training) * 9 // 10
        training[:cut].tofile(folder / "data" / "text" / "train.bin")
        training[cut:].tofile(folder / "data" / "text" / "val.bin")
        (folder / "data" / "text" / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(ids)}))

        def train(iterations: int, interval: int) -> float:
            settings = {**NANOGPT, "dataset": "text", "max_iters": iterations, "lr_decay_iters": iterations}
            words = [f"--{key}={value}" for key, value in (settings | {"eval_interval": interval}).items()]
            started = time.monotonic()
            script = (folder / "train.py").read_text().replace("1337 + seed_offset", f"{1337 + seed}")
            (folder / "seeded.py").write_text(script)
            subprocess.run([sys.executable, "seeded.py", *words], check=True, cwd=folder, stdout=subprocess.DEVNULL)
            return time.monotonic() - started

        start, more = train(10, 1000), train(310, 1000)
        iterations = int((0.97 * 60 * minutes - start) / ((more - start) / 300))
        interval = max(50, iterations // 20)
        iterations -= iterations // interval * 15  # an evaluation of both texts takes about so many steps
        seconds = train(iterations, interval)
        checkpoint = torch.load(folder / "out" / "ckpt.pt", map_location="cpu", weights_only=False)
        spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["nanogpt_model"] = module
        spec.loader.exec_module(module)
    model = module.GPT(module.GPTConfig(**checkpoint["model_args"])).eval()
    model.load_state_dict(checkpoint["model"])
    # the held-out text after the last line of the training text, in windows that move by half
    stream = torch.from_numpy(np.concatenate([training[-1:], held_out]).astype(np.int64))
    nats = 0.0
    with torch.inference_mode():
        for first, start_at, end in windows(len(stream), NANOGPT["block_size"]):
            targets = stream[start_at + 1 : end + 1]
            x = stream[first:end]
            logits = model(x[None], torch.zeros_like(x[None]))[0][0, -len(targets) :]
            nats += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    return {"bits": nats / math.log(2) / len(texts[1]), "seconds": seconds, "iterations": iterations}


def compressor(command: list[str], given: argparse.Namespace) -> dict[str, Any]:
    """The bytes that the held-out text adds to the compressed training text."""
    texts = [path.read_bytes() for path in (given.training, given.held_out)]
    started = time.monotonic()
    alone, both = (
        len(subprocess.run(command, input=t, capture_output=True, check=True).stdout)
        for t in (texts[0], texts[0] + b"\n\n\n" + texts[1])
    )
    characters = len(texts[1].decode("utf-8"))
    return {"bits": 8 * (both - alone) / characters, "seconds": time.monotonic() - started}


def curve(folder: Path) -> list[tuple[float, float]]:
    """Minutes and bits per character on the way, from a run's metrics."""
    seconds, before, points = 0.0, 0, []
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))["settings"]
    per_iteration = record["batch_size"] * record["block_size"]
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        if "tokens_per_second" in values:
            seconds += (values["iteration"] - before) * per_iteration / values["tokens_per_second"]
            before = values["iteration"]
        if "bits_per_character" in values:
            points.append((seconds / 60, values["bits_per_character"]))
    return points


def draw(results: dict[str, dict[str, Any]], out: Path) -> None:
    """Bits per character over time, on each run's own validation text; the held-out figure at the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, result in results.items():
        minutes = result["seconds"] / 60
        if folder := result.get("folder"):
            points = curve(out / folder)[1:]
            (line,) = axes.plot(*zip(*points, strict=True), label=f"{name}: {result['bits']:.3f}")
            axes.plot(minutes, result["bits"], "o", color=line.get_color())
        elif minutes > 0.5:
            axes.plot(minutes, result["bits"], "s", label=f"{name}: {result['bits']:.3f}")
        else:
            axes.axhline(result["bits"], ls=":", lw=1, color="grey")
            where = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "bottom"}
            axes.text(0.99, result["bits"], name, fontsize=8, color="grey", **where)
    axes.set(xlabel="minutes", ylabel="bits per character", title="Lines: validation text. Marks: held-out text")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "leaderboard.png", dpi=150)


def processor() -> str:
    """The processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def main() -> None:
    """Run what is asked for and not yet there, and write table, plot and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("training", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--recipes", default="fables-10min")
    parser.add_argument("--minutes", type=float, help="for all, instead of those of the recipes")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--nanogpt", type=Path, help="a checkout")
    parser.add_argument("--out", type=Path, default=Path("leaderboard"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "leaderboard.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"results": {}}
    results = found["results"]
    seeds = [int(seed) for seed in given.seeds.split(",")]
    recipes = filter(None, given.recipes.split(","))
    jobs = {f"{recipe}, seed {s}": partial(ours, recipe, s, given) for recipe in recipes for s in seeds}
    if given.nanogpt:
        jobs |= {f"nanoGPT, its CPU settings, seed {s}": partial(nanogpt, s, given) for s in seeds}
    jobs |= {n: partial(compressor, command, given) for n, command in COMPRESSORS.items() if shutil.which(command[0])}
    for name, run in jobs.items():
        if name not in results:
            print(f"--- {name}", flush=True)
            results[name] = run() | {"date": time.strftime("%Y-%m-%d")}
            found |= {"machine": f"{os.cpu_count()} x {processor()}", "torch": torch.__version__}
            file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"\n| on {found['machine']}, torch {found['torch']} | bits per character | minutes |\n|---|---|---|")
    for name, result in sorted(results.items(), key=lambda item: item[1]["bits"]):
        print(f"| {name} | {result['bits']:.3f} | {result['seconds'] / 60:.1f} |")
    draw(results, given.out)


if __name__ == "__main__":
    main()
