"""Forget-Me-Not: train the cross-attention to ignore the words of the concept."""
