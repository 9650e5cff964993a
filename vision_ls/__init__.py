"""Image classifiers trained with smoothed labels: calibration and penultimate-layer projections.

Sections 2 and 3 of Müller, Kornblith & Hinton (2019); of section 4 the networks, without distillation and mutual
information. Losses, metrics and the running of experiments are those of `nmt_ls`; nothing of `nmt_ls` knows of this
package.
"""
