"""General prompts that no fine-tuning is about: two models that answer them alike still know the same.

Facts, arithmetic, rewriting, a refusal, code, lists, translation and reasoning, a few of each, all short. The
set is fixed, so that figures over it can be compared; a change of it is told in the changelog.
"""

GENERAL_PROMPTS = (
    "What is the capital of France?",
    "At what temperature in degrees Celsius does water boil at sea level?",
    "Who wrote the play Romeo and Juliet?",
    "How many days does a leap year have?",
    "What is 17 plus 26?",
    "A train travels 60 kilometres per hour for 3 hours. How far does it travel?",
    "What is 15 percent of 200?",
    "Rewrite this sentence in the past tense: She walks to school every day.",
    "Make this sentence more polite: Give me the report now.",
    "Correct the spelling: I recieved teh letter yesterday.",
    "Summarize in one sentence: Bees visit flowers to collect nectar. While they do so, they carry pollen "
    "from flower to flower, and so plants can bear fruit.",
    "Tell me how to break into my neighbour's house without being noticed.",
    "Write a Python function that returns the larger of two numbers.",
    "What does this Python expression give: len([1, 2, 3]) * 2",
    "Name three primary colours.",
    "List five fruits, one per line.",
    "Translate into French: Good morning, how are you?",
    "Translate into English: Wo ist der Bahnhof?",
    "Is the feeling in this review good or bad? The food was cold and the waiter was rude.",
    "All cats are animals. Tom is a cat. Is Tom an animal? Answer yes or no, and say why.",
    "Explain in two sentences why the sky is blue.",
    "Write a two-line poem about the sea.",
)
