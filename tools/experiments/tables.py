"""Tables and verdicts, from the JSON of a study."""
from typing import Dict, List, Tuple

from demo_stages.summary import spread
from scipy import stats

from .cells import Claim, Row, Study

EQUAL = 1.  # points within which two models are about equal


def interval(values: List[float]) -> Tuple[float, float]:
    """Where the mean of further seeds would lie, 19 times of 20 on each side.

    Student's t: two seeds say little, and one nothing.
    """
    mean = sum(values) / len(values)
    if len(values) < 2:
        return float('-inf'), float('inf')
    half = float(stats.t.ppf(.95, len(values) - 1) * stats.sem(values))
    return mean - half, mean + half


def minus(ours: Dict[str, float], theirs: Dict[str, float]
          ) -> Dict[str, float]:
    """Differences of the seeds that both have."""
    return {seed: ours[seed] - theirs[seed] for seed in ours
            if seed in theirs}


class Results:
    """The measured cells of a study.

    Args:
        study (Study): Its table.
        measured (dict): Its JSON.
    """

    def __init__(self, study: Study, measured: dict) -> None:
        self.study = study
        self.cells = measured['cells']

    def metrics(self, name: str) -> Dict[str, float]:
        """Seed -> metric of a cell, of the study's seeds: others may have run
        more of a cell that they share. One that all seeds share has 0."""
        cell = self.cells.get(name, dict(seeds={}))
        return {seed: result['metric'] for seed, result
                in cell['seeds'].items() if cell.get('shared')
                or int(seed) in self.study.all_seeds()}

    def drops(self, name: str) -> Dict[str, float]:
        """Seed -> metric of the reference of a cell minus its own."""
        reference = self.cells.get(name, {}).get('reference')
        ours, theirs = self.metrics(name), self.metrics(reference)
        if self.cells.get(reference, {}).get('shared'):
            theirs = {seed: theirs['0'] for seed in ours if '0' in theirs}
        return minus(theirs, ours)

    def text(self, values: List[float]) -> str:
        """'1.3 (0.9 to 1.6)', with the number of seeds where some lack."""
        if not values:
            return 'not run'
        found = spread(values)
        text = f'{found["mean"]:.1f}'
        if len(values) > 1:
            text += f' ({found["min"]:.1f} to {found["max"]:.1f})'
        return text + (f' [{len(values)}]'
                       if len(values) != self.study.seeds else '')

    def table(self) -> str:
        """Markdown."""
        head = [self.study.corner, *self.study.columns]
        lines = [head, ['---'] * len(head)]
        for row in self.study.rows:
            lines.append(self._filled(row.label, [
                self._cell(row, name) for name in row.cells]))
            if row.paper:
                lines.append(self._filled('the paper', row.paper))
        return '\n'.join(f'| {" | ".join(line)} |' for line in lines)

    def _cell(self, row: Row, name) -> str:
        if name is None:
            return ''
        values = self.metrics if row.show == 'metric' else self.drops
        return self.text(list(values(name).values()))

    def _filled(self, label: str, cells) -> list:
        return [label, *cells,
                *[''] * (len(self.study.columns) - len(cells))]

    def claims(self) -> str:
        """Markdown: what was claimed, what came out, the verdict."""
        lines = [['claim', 'came out', 'seeds', 'verdict'], ['---'] * 4]
        lines += [[claim.words, *self.judge(claim)]
                  for claim in self.study.claims]
        return '\n'.join(f'| {" | ".join(line)} |' for line in lines)

    def judge(self, claim: Claim) -> List[str]:
        """What came out, of how many seeds, and the verdict."""
        votes, texts, seeds = [], [], []

        def vote(by_seed, is_so, is_not, text):
            values = list(by_seed.values())
            if values:
                low, high = interval(values)
                mean = sum(values) / len(values)
                votes.append(1 if is_so(low, mean, high) else
                             -1 if is_not(low, mean, high) else 0)
                texts.append(text(mean))
                seeds.append(len(values))

        for ours, theirs in claim.better:
            vote(minus(self.drops(theirs), self.drops(ours)),
                 lambda low, mean, high: low > 0,
                 lambda low, mean, high: high < 0, '{:+.1f}'.format)
        for ours, theirs in claim.equal:
            vote(minus(self.metrics(ours), self.metrics(theirs)),
                 lambda low, mean, high: -EQUAL <= low and high <= EQUAL,
                 lambda low, mean, high: (low > 0 or high < 0)
                 and abs(mean) > EQUAL, '{:+.1f}'.format)
        for name, limit in claim.limits.items():
            vote(self.drops(name), lambda low, mean, high: mean <= limit,
                 lambda low, mean, high: low > limit,
                 lambda mean, limit=limit: f'drop {mean:.1f}' + (
                     f', {mean - limit:.1f} too much' if mean > limit else ''))
        number = len(claim.better) + len(claim.equal) + len(claim.limits)
        if not votes:
            return ['', '', 'not run yet']
        few, many = min(seeds), max(seeds)
        verdict = ('one seed: no verdict' if many == 1 else
                   'confirmed' if min(votes) == 1 else
                   'contradicted' if min(votes) == -1 else 'not seen')
        if number > 1 and many > 1 and min(votes) < 1:
            verdict += (f' ({votes.count(1)} of {len(votes)} so, '
                        f'{votes.count(-1)} the other way)')
        if len(votes) < number:
            verdict += f'; {len(votes)} of {number} run'
        return ['; '.join(texts), str(few) if few == many else
                f'{few} to {many}', verdict]
