from mu.algorithms.single_layer_unlearning_gradient.algorithm import SingleLayerUnlearningGradientAlgorithm
from mu.core.program import main

if __name__ == "__main__":
    main(SingleLayerUnlearningGradientAlgorithm)
