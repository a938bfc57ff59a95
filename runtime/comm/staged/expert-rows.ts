// A rank's expert rows joined into its partial on the host, with the steps of shaders/moe_combine.wgsl.
import type { RankExperts } from '../fusion/experts.ts'
import type { Operand, Source, Staging } from './group.ts'
import { bytesOf, type Numbers, numbersIn } from './numbers.ts'

/** Products and sums in float32, experts ascending; `routed` applies to their sum alone; rounded to the rows' dtype once. */
export async function expertRows(staging: Staging, experts: RankExperts<Operand>): Promise<Uint8Array> {
  const { k, count, routed, plan } = experts
  const { tokens, hidden, dtype } = plan.spec
  const given = [experts.rows, experts.scale, experts.index, experts.shared]
  const read = await staging.own(given.filter((operand): operand is Operand => operand !== null) satisfies Source[])
  const [rows, scale, index, shared] = given.map((operand) => operand && numbersIn(operand.dtype, read.shift() as Uint8Array)) as [
    Numbers,
    Numbers | null,
    Numbers | null,
    Numbers | null,
  ]
  const sum = new Float32Array(tokens * hidden)
  for (let token = 0; token < tokens; token++) {
    const row = sum.subarray(token * hidden, (token + 1) * hidden)
    for (let j = 0; j < k; j++) {
      const entry = index ? token * k + j : j * tokens + token
      const source = index ? (index[entry] as number) : entry
      if (source >= 0 && source < count) addScaled(row, rows, source * hidden, scale ? (scale[entry] as number) : 1)
    }
    if (routed !== 1) for (let i = 0; i < hidden; i++) row[i] = (row[i] as number) * Math.fround(routed)
    if (shared) for (let i = 0; i < hidden; i++) row[i] = (row[i] as number) + (shared[token * hidden + i] as number)
  }
  return bytesOf(dtype, sum)
}

function addScaled(row: Float32Array, rows: Numbers, from: number, scale: number): void {
  for (let i = 0; i < row.length; i++) row[i] = (row[i] as number) + Math.fround((rows[from + i] as number) * scale)
}
