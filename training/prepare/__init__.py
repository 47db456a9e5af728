"""Public data sets, in the layout that they come in, into shards: python -m training.prepare --help

`items` says what a source is, `filters` which objects are kept, `work` does all that the sources share; `multiview`,
`video`, `stills` and `captions` read the data sets.
"""
