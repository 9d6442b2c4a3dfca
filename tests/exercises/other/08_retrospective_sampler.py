"""Another solution: places and weights in two lists."""

import random


class RetrospectiveSampler:
    def difficulty(self, example_id):
        reward = self.mean_rewards[example_id]
        return 1 / reward if reward > self.floor else 1 / self.floor

    def hard_examples(self, phase):
        earlier = [key for number, keys in self.members.items() if number < phase.number for key in keys]
        return [key for key in earlier if key in self.mean_rewards and self.mean_rewards[key] <= self.hard_below]

    def draw(self, phase, n):
        number = phase.number
        left = {key: self.difficulty(key) for key in self.hard_examples(phase)}
        generator = random.Random(f"{self.seed}/retrospective/{number}/{self.num_draws[number]}")
        self.num_draws[number] = self.num_draws[number] + 1
        returning = []
        while left and len(returning) < self.num_reserved(n):
            (key,) = generator.choices(list(left), list(left.values()))
            del left[key]
            returning.append(key)
        own = self._draw_own(number, n - len(returning))
        return [*own, *returning]
