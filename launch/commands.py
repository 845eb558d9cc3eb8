"""The commands: what each does, in a line. Each is a module of this package with main(argv), which returns the exit status."""

COMMANDS = {
    "plan": "print every number of the run with its reason; start nothing",
    "train": "train in this process: one GPU or the CPU, debugger and breakpoints welcome",
    "launch": "write the run folder and start one process per GPU with accelerate launch",
    "find-batch": "find the largest micro-batch that fits, and the fastest; the global batch stays",
    "lr-range": "find the largest stable learning rate at the reference batch: the headroom of every scaling rule",
    "sweep": "train at many batches under many rules: how far may the batch be raised, and by which rule",
    "branch": "continue a run from its checkpoint at larger batches: the largest safe batch now, and its rate",
    "verify": "prove that N ranks compute what one process computes, or name the first difference",
    "bench": "measure the recipe's speed on several worlds: weak and strong scaling, and a record for expected hours",
    "doctor": "look for what this machine lacks, and measure its ranks' all-reduce",
    "export": "write a run's weights as model.safetensors, or as a Hugging Face folder",
    "report": "show what runs did: one page for a browser, or text",
    "dashboard": "make the W&B workspace that shows a project's runs",
}
