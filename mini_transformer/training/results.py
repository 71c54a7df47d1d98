"""What a run leaves beside `model.safetensors`: other forms of the weights, a text, the curve. Rank 0 writes."""

from torch import Tensor

from mini_transformer.data.prepare import TrainingData
from mini_transformer.errors import UserError
from mini_transformer.export.gguf import write_gguf
from mini_transformer.files import replacing
from mini_transformer.model import pretrained
from mini_transformer.model.decoder import Decoder
from mini_transformer.runtime import log, rank
from mini_transformer.training.checkpoint import save_tensors
from mini_transformer.training.plot import draw_loss_curve
from mini_transformer.training.run_folder import CURVE, GGUF, METRICS, STATE_DICT, TEXT, RunFolder


def write_results(
    folder: RunFolder, model: Decoder, weights: dict[str, Tensor], data: TrainingData, phases: list[tuple[str, int]]
) -> None:
    """The weights as PyTorch and llama.cpp have them, and the loss curve; `phases`: names and iterations."""
    if rank() != 0:
        return
    save_tensors(folder.folder / STATE_DICT, pretrained.export_weights(weights))
    try:
        write_gguf(folder.folder / GGUF, model.config, data.tokenizer, weights)
    except UserError as error:
        log(f"No {GGUF}: {error}")
    draw_loss_curve(folder.folder / METRICS, folder.folder / CURVE, phases, data.tokens_per_character)


def write_text(folder: RunFolder, text: str) -> None:
    """The text that the finished model wrote, ending in one line break."""
    if rank() != 0:
        return
    with replacing(folder.folder / TEXT) as temporary:
        temporary.write_text(text.strip("\n") + "\n", encoding="utf-8")
