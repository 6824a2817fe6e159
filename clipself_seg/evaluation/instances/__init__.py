"""Average precision of instance masks by COCO's rules; start with ap.py, the evaluator."""
