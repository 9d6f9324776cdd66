"""One of two processes that build banks together, for test_bank_build.py: rank, port and folder are its arguments."""

import os
import sys
from pathlib import Path

import torch

RANK, PORT, FOLDER = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
os.environ |= {"RANK": str(RANK), "LOCAL_RANK": str(RANK), "WORLD_SIZE": "2"}
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": PORT, "ACCELERATE_USE_CPU": "true"}
sys.path.insert(0, str(Path(__file__).parent))

from accelerate import Accelerator  # noqa: E402
from peft import get_peft_model  # noqa: E402
from test_bank_build import build_bank, loader  # noqa: E402

import point_peft_hf as pp  # noqa: E402
from point_peft_hf.data import get_augmentation  # noqa: E402

torch.set_num_threads(1)
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
model = pp.PointMAEForClassification.from_pretrained(FOLDER / "backbone")

for name, batches in (
    ("batch1", loader(batch_size=1)),
    ("batch4", loader(shuffle=True)),
    ("batch64", loader(batch_size=64)),
    ("prepared", accelerator.prepare(loader())),
    ("list", list(loader())),
):
    build_bank(model, batches, accelerator=accelerator).save(FOLDER / f"{name}.{RANK}")
build_bank(
    model,
    loader(),
    accelerator=accelerator,
    augment=get_augmentation("scale_translate"),
    num_passes=2,
    checkpoint=FOLDER / "unfinished",
).save(FOLDER / f"augmented.{RANK}")

clouds = loader().dataset.points
for update in ("ema", "queue"):
    config = pp.PointPriorPromptConfig(num_prompt_tokens=4, query="encoder", bank_update=update, bank_dtype="float32")
    adapted = get_peft_model(pp.PointMAEForClassification.from_pretrained(FOLDER / "backbone"), config)
    build_bank(adapted, loader(), accelerator=accelerator)
    # Batches of two and three clouds.
    own = torch.tensor([0, 1]) if RANK == 0 else torch.tensor([2, 3, 4])
    adapted.train()(clouds[own], labels=own, sample_ids=100 - own)
    bank = next(m.banks["default"] for m in adapted.modules() if getattr(m, "banks", None))
    torch.save(dict(bank.named_buffers()), FOLDER / f"{update}.{RANK}.pt")
accelerator.end_training()
