"""Image classifiers trained with smoothed labels: calibration, penultimate-layer projections, distillation, mutual
information.

Sections 2 to 4 of Müller, Kornblith & Hinton (2019). Losses, metrics and the running of experiments are those of
`nmt_ls`; nothing of `nmt_ls` knows of this package.
"""
