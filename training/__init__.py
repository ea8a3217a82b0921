"""Takes simulated or recorded exams, gives trained model bundles and their evaluation."""
