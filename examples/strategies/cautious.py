"""A strategy of one's own: copy what is nearly certain, leave everything else to the model.

Put the file on PYTHONPATH and name it in the recipe: ``memory: {strategy: "cautious:Cautious"}``.
"""

from pipeline.memory.strategy import WEIGHTS, Plan, Situation


class Cautious:
    def plan(self, asked: Situation) -> Plan:
        if asked.reading.gate < 0.8:
            return WEIGHTS.plan(asked)
        slot = asked.reading.slots[0]
        return Plan("cautious", text=slot.answer, cites=(slot,), probabilities={"cautious": 1.0})
