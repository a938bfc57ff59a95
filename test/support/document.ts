// Parts of documents that tests write: each lies between comments that name it, and must not be stale. RANKMESH_UPDATE_DOCS=1 writes it anew.
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect } from 'vitest'

/** The part `name` of docs/`file` is `text`. */
export function expectDocument(file: string, name: string, text: string): void {
  const path = join(import.meta.dirname, '../../docs', file)
  const marks = [`<!-- ${name} -->\n`, `<!-- end of ${name} -->\n`] as const
  const whole = readFileSync(path, 'utf8')
  const [begin, end] = [whole.indexOf(marks[0]) + marks[0].length, whole.indexOf(marks[1])]
  expect(begin >= marks[0].length && end >= begin, `${path} has the part ${name}`).toBe(true)
  if (process.env.RANKMESH_UPDATE_DOCS) writeFileSync(path, `${whole.slice(0, begin)}${text}\n${whole.slice(end)}`)
  else expect(whole.slice(begin, end)).toBe(`${text}\n`)
}
