// Slurm's compressed lists: hosts like `n[01-04,7],m3` and tasks per node like `2(x3),1`.
import { ArgumentError } from '../core/errors.ts'

/** More than any machine has; what asks for more is damaged. */
const MAX_ENTRIES = 100_000

/**
 * All hosts of a list, in its order. A host may have several groups of brackets, of which the last counts fastest; numbers keep the width
 * they are written with: `n[08-10]` → n08, n09, n10.
 * @throws ERR_ARGUMENT, with the variable `name`, for what is no such list or names more than 100000 hosts.
 */
export function expandHosts(text: string, name: string): string[] {
  const refuse = (why: string): ArgumentError => badList(name, 'a list of hosts like n[01-04,7],m3', text, why)
  const hosts: string[] = []
  const items = text.match(/(?:[^,[]|\[[^\]]*\]?)+/g) ?? []
  if (text === '' || items.join(',') !== text) throw refuse('there is an empty item')
  for (const item of items) {
    if (!/^[^\s[\],]*(\[[\d,-]+\][^\s[\],]*)*$/.test(item)) throw refuse(`${JSON.stringify(item)} is no host`)
    let names = ['']
    for (const [, plain = '', ranges] of item.matchAll(/([^[\]]+)|\[([^\]]+)\]/g)) {
      const ends = ranges === undefined ? [plain] : expandRanges(ranges, refuse)
      if (hosts.length + names.length * ends.length > MAX_ENTRIES) throw refuse(`more than ${MAX_ENTRIES} hosts`)
      names = names.flatMap((start) => ends.map((end) => start + end))
    }
    hosts.push(...names)
  }
  return hosts
}

/** `01-04,7` → 01, 02, 03, 04, 7. */
function expandRanges(ranges: string, refuse: (why: string) => ArgumentError): string[] {
  const numbers: string[] = []
  for (const range of ranges.split(',')) {
    const [, from, to = from] = /^(\d{1,15})(?:-(\d{1,15}))?$/.exec(range) ?? []
    if (from === undefined || to === undefined || Number(to) < Number(from)) throw refuse(`${JSON.stringify(range)} is no range`)
    if (numbers.length + Number(to) - Number(from) >= MAX_ENTRIES) throw refuse(`more than ${MAX_ENTRIES} hosts`)
    for (let n = Number(from); n <= Number(to); n++) numbers.push(String(n).padStart(from.length, '0'))
  }
  return numbers
}

/**
 * Tasks on each node: `2(x3),1` → 2, 2, 2, 1.
 * @throws ERR_ARGUMENT, with the variable `name`, for what is no such list or has more than 100000 nodes.
 */
export function expandTasksPerNode(text: string, name: string): number[] {
  const counts: number[] = []
  for (const item of text.split(',')) {
    const [, tasks, times = '1'] = /^(\d{1,9})(?:\(x(\d{1,9})\))?$/.exec(item) ?? []
    if (tasks === undefined) throw badList(name, 'tasks per node like 2(x3),1', text, `${JSON.stringify(item)} is no count`)
    if (counts.length + Number(times) > MAX_ENTRIES) throw badList(name, 'tasks per node', text, `more than ${MAX_ENTRIES} nodes`)
    for (let i = 0; i < Number(times); i++) counts.push(Number(tasks))
  }
  return counts
}

function badList(name: string, expected: string, text: string, why: string): ArgumentError {
  const shown = text.length > 80 ? `${text.slice(0, 77)}...` : text
  return new ArgumentError(`Expected ${expected} for the variable ${name} but received ${JSON.stringify(shown)}: ${why}`)
}
