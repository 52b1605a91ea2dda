from mu.algorithms.semipermeable_membrane.algorithm import SemipermeableMembraneAlgorithm
from mu.core.program import main

if __name__ == "__main__":
    main(SemipermeableMembraneAlgorithm)
