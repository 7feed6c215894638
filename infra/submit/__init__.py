"""`dnd submit`: the job made from a spec for Ray, Slurm, Kubernetes or this machine, and the record of its code."""
