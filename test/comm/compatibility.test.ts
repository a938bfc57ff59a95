// The tables of docs/compatibility.md name nothing that is not there.
import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import * as api from '../../runtime/api.ts'
import { LocalHostComm } from '../../runtime/comm/host.ts'

const text = readFileSync(new URL('../../docs/compatibility.md', import.meta.url), 'utf8')
const sections = text.split(/^## /m).slice(1)
const PROPERTIES: Record<string, object> = { comm: api.Communicator.prototype, host: LocalHostComm.prototype }

/** Names in a table's last column: all that is set as code. */
function namesOf(section: string): { row: string; names: string[] }[] {
  const rows = section.split('\n').filter((line) => line.startsWith('|') && !/^\| (theirs|---)/.test(line))
  return rows.map((row) => {
    const ours = row.split('|').at(-2) as string
    return { row, names: [...ours.matchAll(/`([^`]+)`/g)].map((match) => match[1] as string) }
  })
}

for (const section of sections.slice(0, 3)) {
  describe(section.split('\n')[0] as string, () => {
    for (const { row, names } of namesOf(section)) {
      it(row, () => {
        expect(names.length > 0 || row.includes('not there'), 'ours, or "not there"').toBe(true)
        for (const name of names) {
          const [owner, member] = name.includes('.') ? (name.split('.') as [string, string]) : ['', name]
          const place = PROPERTIES[owner] ?? api
          expect(member in place || (owner === 'host' && ['rank', 'size'].includes(member)), `${name} exists`).toBe(true)
        }
      })
    }
  })
}

it('has its three tables, and one of differences', () => {
  expect(sections).toHaveLength(4)
  expect(sections.slice(0, 3).every((section) => namesOf(section).length > 10)).toBe(true)
})
