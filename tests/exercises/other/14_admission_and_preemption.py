"""Another solution: one small method for each question."""


class Schedule:
    def admit(self):
        new = []
        while self.waiting and self._has_room(self.waiting[0]):
            answer = self.waiting.popleft()
            stem_len = len(answer.prompt_ids) - 1
            if self.cached_stem is None:
                table = self.pool.allocate(stem_len)
                self.cached_stem = Stem(answer.prompt, answer.prompt_ids[:-1], table)
                new.append(self.cached_stem)
            answer.stem, answer.num_cached = self.cached_stem, stem_len
            answer.table = self.pool.fork(self.cached_stem.table)
            self.running.append(answer)
            if not any(other.prompt == answer.prompt for other in self.waiting):
                self._evict_stem()
        return new

    def _has_room(self, answer):
        if not self.running:
            return True
        size, stem_len = self.pool.block_size, len(answer.prompt_ids) - 1
        blocks = blocks_for(answer.context_len, size) - stem_len // size
        if self.cached_stem is None:
            blocks += blocks_for(stem_len, size)
        return blocks + self._reserve(answer) <= self.pool.num_free

    def _reserve(self, answer):
        if self.cached_stem is not None and not answer.ids:
            return len(self.running)
        growing = list(self.running)
        for other in self.waiting:
            if other.prompt == answer.prompt and other is not answer:
                growing.append(other)
        return sum(self._expected_growth(other) for other in growing)

    def _make_room(self):
        last = self.running[-1]
        if self.cached_stem is not None and (len(self.running) < 2 or last.prompt != self.cached_stem.prompt):
            self._evict_stem()
            return
        if len(self.running) < 2:
            raise OutOfBlocks(f"one answer alone does not fit into {self.pool.num_blocks} blocks of "
                              f"{self.pool.block_size} tokens")
        self._preempt()

    def _preempt(self):
        answer = self.running.pop(-1)
        if self.cached_stem is None:
            shared = len(answer.stem.table)
            answer.stem.table = self.pool.fork(answer.table[:shared])
            self.cached_stem = answer.stem
        self.pool.free(answer.table)
        answer.stem = None
        self.waiting.insert(0, answer)
