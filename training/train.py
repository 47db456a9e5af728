"""Train a stage: python -m training.train STAGE --output FOLDER ...; the same command resumes.

One loop for all stages: `warmup` teaches a fresh adapter to imitate the text encoder (ObjectStitch, arXiv
2212.00932), `identity` learns identity from two views on black, `compositing` puts the object into a background
(IMPRINT, arXiv 2403.10701, section 3), and `finetune` learns one object from a few photos. Runs on a CPU or GPU, or
on many through `accelerate launch` or `torchrun`. The run's folder describes itself: options.json, data.json,
stats.jsonl, tensorboard/, samples-*.png, state-*/ (to resume from), checkpoint-*.safetensors, best.safetensors and
checkpoint.safetensors; for a LoRA, lora-*.safetensors and lora.safetensors.
"""

from __future__ import annotations

import errno
import json
import sys

from safetensors import SafetensorError

from imprint.errors import ImprintError, print_anything
from imprint.importing import UNUSED, left_out

from .loop.source import read_ahead
from .settings import STAGES, parse_train


def main(argv: list[str] | None = None) -> None:
    print_anything()
    settings = parse_train(argv, __doc__)
    try:
        with read_ahead(settings) as pictures:
            # Only now, while the pictures are read: with diffusers and transformers this takes as long. Of what they
            # import in turn only peft is used here, by a LoRA.
            needed = "peft" if STAGES[settings.stage].lora else ""
            with left_out([name for name in UNUSED if name != needed and argv is None]):
                from .loop.run import Run
            run = Run(settings)
            if settings.dry_run:
                run.try_data_and_folder()
                if run.main:
                    print(json.dumps(run.described(), indent=1))
                run.accelerator.end_training()
            else:
                run.train(pictures)
                if run.asked:
                    print(f"stopped; {run.state.last()}: the same command resumes", file=sys.stderr)
                    sys.exit(128 + run.asked[0])
    except ImprintError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # while pictures are read, or the second one
        sys.exit(f"stopped at once; what is in {settings.output} is whole: run the same command again")
    except (OSError, SafetensorError) as error:  # a disk that is full or gone
        remedy = "make room" if getattr(error, "errno", None) in (None, errno.ENOSPC, errno.EDQUOT) else "mend that"
        sys.exit(f"error: {error}; what is in {settings.output} is whole: {remedy}, and run the same command again")


if __name__ == "__main__":
    main()
