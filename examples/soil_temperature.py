r"""Learn a soil's diffusivity from its thermometers, and forecast its temperature for a day.

A deep soil station logs the temperature at fourteen depths from 5 to 225 cm. In between heat is
conducted,

.. math::  \partial_t T = \partial_z (\alpha(z) \, \partial_z T),

and nobody has measured the diffusivity alpha. A small network of depth gives it; the solver
``heat1d`` carries the profile forward, hour by hour, between the measured temperatures at the two
ends; and the misses at the twelve inner depths a day later are what the network learns from,
through the solver's adjoint. It is judged on a summer that it has not seen.

Two models are trained. ``profile`` is just that: a network, and one number for the upper sensor's
delay. ``corrected`` adds what the profile's misses show when one looks at them:

*A miss comes back.* Dry soil conducts otherwise than wet soil, and it stays dry for weeks. So
yesterday's miss, known when today's forecast is made, foretells today's: an average of the last
days' misses, for each sensor at the same hour of the day, is added. Two numbers are learned, how
much of it and how far back. Hours that were not measured add nothing.

*The instrument breathes.* No wave of the day reaches 225 cm (it is down by a factor of 1e-8 there),
and yet that sensor swings by a tenth of a kelvin every morning. It is the logger's own warming, and
other sensors have it too. Their shares in it are learned; it is taken off what is put in, and added
to what is forecast.

Error of the forecast, K, over all inner depths, May to September, each year held back in turn:

====================================================== ======== ========
model                                                  2015     2016
====================================================== ======== ========
persistence: tomorrow is as today                      RES_PER
best constant diffusivity                              RES_CON
``profile``                                            RES_PRO
``corrected``                                          RES_COR
====================================================== ======== ========

The data are those of the North Dakota Agricultural Weather Network's deep soil stations
(https://ndawn.ndsu.nodak.edu), and not ours to ship. A few years of Fargo come with the teaching
notes https://github.com/andres-patrignani/pynotes. A row is an hour::

    station,time_cst,T5cm,T10cm,T20cm, ... ,T225cm
    Fargo,10/2/14 12:00,18.09,15.36,14.49, ... ,11.16

Run it: ``python examples/soil_temperature.py PATH.csv.gz`` holds back each summer in turn;
``--hold-back 2016`` trains on all the others, once.
"""
