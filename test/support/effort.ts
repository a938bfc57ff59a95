// How much of its longest suites a run takes: by default what a few minutes allow, drawn anew each time; with RANKMESH_TEST_LONG=1 all of it.
import { Random } from './random.ts'

const LONG = process.env.RANKMESH_TEST_LONG === '1'

/** How often something is tried. */
export function times(long: number, short: number): number {
  return LONG ? long : short
}

/** `count` of a list, in its order, the same for the same seed; all of it in a long run. */
export function drawn<T>(list: readonly T[], count: number, seed: number): T[] {
  const random = new Random(seed)
  const left = [...list.keys()]
  while (!LONG && left.length > count) left.splice(random.int(left.length), 1)
  return left.map((i) => list[i] as T)
}
