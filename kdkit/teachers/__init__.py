"""Teachers: frozen timm models that normalise their own input, and the cards that describe them.

Where to look:
    factory.py      `create_teacher`: timm name, checkpoint or module -> teacher.py; ensemble.py averages several
    timm_model.py   builds a model by its name, torchvision_model.py and imported_model.py those that are not timm's;
                    weights.py finds the weights in a checkpoint, fitting.py fits them to it; weights_file.py reads
                    the file, weights_folder.py a folder of them, stored_names.py the names of their classes;
                    starting_weights.py starts a student from them, reused_head.py from its teacher's classifier;
                    model_folder.py a folder in the layout of timm's hub; hub.py keeps the hub's client quiet, or local
    teacher.py      the frozen model; preparation.py resizes and normalises, split.py runs a batch in parts;
                    head.py gives the weight of its classifier
    tap.py          features by name, module_tap.py by the path of a module, members.py of an ensemble's members;
                    structure.py, model_config.py read facts from a timm model
    class_map.py    the model's classes in the order of the data; class_names.py finds their names,
                    imagenet.py those of ImageNet's families; class_indices.py refuses indices of an unknown order;
                    matching.py matches a teacher with the data
    card.py         teacher cards; card_reading.py parses them
    fingerprint.py  the record of the teacher in a cache
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdkit._lazy import lazy_exports

if TYPE_CHECKING:
    from kdkit.teachers.card import TeacherCard as TeacherCard
    from kdkit.teachers.card import list_cards as list_cards
    from kdkit.teachers.card import load_card as load_card
    from kdkit.teachers.ensemble import TeacherEnsemble as TeacherEnsemble
    from kdkit.teachers.factory import create_teacher as create_teacher
    from kdkit.teachers.teacher import Teacher as Teacher

__all__ = ["Teacher", "TeacherCard", "TeacherEnsemble", "create_teacher", "list_cards", "load_card"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Teacher": "kdkit.teachers.teacher",
        "TeacherCard": "kdkit.teachers.card",
        "TeacherEnsemble": "kdkit.teachers.ensemble",
        "create_teacher": "kdkit.teachers.factory",
        "list_cards": "kdkit.teachers.card",
        "load_card": "kdkit.teachers.card",
    },
)
