from mu.algorithms.separable_concept_erasure.algorithm import ConceptIrrelevantErasureAlgorithm
from mu.core.program import main

if __name__ == "__main__":
    main(ConceptIrrelevantErasureAlgorithm)
