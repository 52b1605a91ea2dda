"""SalUn on a CLIP: alternate forgetting and repair, in the weights with the largest forget gradients."""
