"""The audit of recordings: ``ecgmeta.data.audit`` and ``ecgmeta data audit PATH``.

`findings` says what is looked for and how bad it is; `signals`, `limb` and `electrodes` look at the samples of one record,
`rhythm` at its beats, `pool` at all of them together; `parts` walks over folders and datasets, `audit` joins them.
"""
