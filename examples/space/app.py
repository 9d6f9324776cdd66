"""A Space of Hugging Face with the demo page; name your adapters here."""

from point_peft_hf.commands import main

main(["demo", "you/my-adapter", "--host", "0.0.0.0"])
