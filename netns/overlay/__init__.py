"""The overlay: a VXLAN device for each network, whose every entry is known beforehand and none is learnt."""
