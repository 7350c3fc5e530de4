"""What `train` is made of: one thought a module.

===============  ================================================================
`settings`       what the user asked for, checked before anything is touched
`batches`        what loaders yield; an epoch that can be replayed
`step`           one batch: forward, loss, backward, update, or nothing at all
`nonfinite`      who gave the first NaN
`ranks`          one process, or a `torch.distributed` group of them
`interruption`   Ctrl-C and SIGTERM, put off to the end of the batch
`runs`           directories, and the record of what was run
`resume`         `last.ckpt`: all that it takes to go on
`session`        a run's log and record, from its first file to its last
`log`            TensorBoard and printed lines
`progress`       a bar on a terminal
`timing`         which solver the time of a step goes into
`callbacks`      the user's own code in the loop
`loop`           the loop
===============  ================================================================

The public face is `adeptml_core.train_utils`.
"""
