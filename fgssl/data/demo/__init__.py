"""The birds of the demo set, drawn by code: `demo_set` is the door.

scene.py   paper, backgrounds, distractors, light: nothing here knows the class
parts.py   beak, crown and wing panel: all that tells the class
bird.py    one bird in one scene: `draw_nuisance`, then `paint`
wild.py    another ground: the bird small and anywhere, among distractors, partly covered
"""
