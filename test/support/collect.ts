// Stands in for vitest in programs that run cases themselves, in threads and processes: `it` and `describe` collect them, `expect` is vitest's.
export { expect } from 'vitest'

export interface Collected {
  name: string
  /** Null for a case that is skipped. */
  body: (() => unknown) | null
}

type Declare = (name: string, body: () => unknown) => void

const collected: Collected[] = []

export const it: Declare & { skip: Declare } = Object.assign((name: string, body: () => unknown) => void collected.push({ name, body }), {
  skip: (name: string) => void collected.push({ name, body: null }),
})

/** The cases that `declare` declares. */
export function casesOf(declare: () => void): Collected[] {
  declare()
  return collected.splice(0)
}

export function describe(name: string, body: () => void): void {
  const before = collected.length
  body()
  for (const one of collected.slice(before)) one.name = `${name} > ${one.name}`
}
