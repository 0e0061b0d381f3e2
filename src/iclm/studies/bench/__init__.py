"""Speed and memory of an ICLM beside plain LoRA, PEFT and X-LoRA, and what a split costs in accuracy."""
