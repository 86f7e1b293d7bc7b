# From a folder of images to a model that timm loads, on scikit-learn's digits; docs/quickstart.md explains it.
# digits/train, digits/labelled (100 images), digits/unlabelled (1,247 images) and digits/val
python examples/digits_folders.py digits
# train a teacher on all labels: its run is a teacher in every command
kdkit distill digits/train --student test_resnet --val digits/val --size 32 --views 4 --epochs 4 --batch-size 64 --lr 2e-3 \
    --recipe.hflip 0 --recipe.scale 0.8,1 -o runs/teacher
# run it once, on 4 views of each image; show what the cache holds and how accurately
kdkit cache build digits/labelled digits/unlabelled --teacher runs/teacher --size 32 --views 4 \
    --recipe.hflip 0 --recipe.scale 0.8,1 -o teacher.h5
kdkit cache info teacher.h5
# train a student from the cache, and the same student from the 100 labels alone
kdkit distill digits/labelled digits/unlabelled --cache teacher.h5 --student test_efficientnet --val digits/val \
    --epochs 8 --batch-size 64 --lr 4e-3 -o runs/student
kdkit distill digits/labelled --student test_efficientnet --val digits/val --size 32 --views 4 \
    --epochs 16 --batch-size 10 --lr 4e-3 --recipe.hflip 0 --recipe.scale 0.8,1 -o runs/baseline
kdkit compare runs/teacher runs/student runs/baseline
# evaluate the student, and export its weights for timm
kdkit evaluate runs/student digits/val
kdkit export runs/student -o exported
python -c 'import timm; print(timm.create_model("local-dir:exported", pretrained=True).num_classes, "classes")'
