// exp for arguments up to 0, in additions and multiplications alone: Math.exp may differ in its last bit from one engine to the next.

/** ln 2 in two parts; the first has so few bits that its product with a whole number up to 1074 is exact. */
const LN2_HIGH = 0.6931471803691238
const LN2_LOW = 1.9082149292705877e-10
const TERMS = 14
/** Below this exp is 0 or subnormal; both count as 0 here. */
const SMALLEST = -708

/** POWERS[k] is 2 to the power of -k, made by halving. */
const POWERS = new Float64Array(1023)
for (let k = 0, power = 1; k < POWERS.length; k++, power /= 2) POWERS[k] = power

/** exp(x) for x <= 0, within a few units in the last place; 0 below -708. */
export function expNegative(x: number): number {
  if (!(x >= SMALLEST)) return 0
  const k = Math.round(x * Math.LOG2E)
  const r = x - k * LN2_HIGH - k * LN2_LOW
  let sum = 1
  for (let n = TERMS; n > 0; n--) sum = 1 + (r / n) * sum
  return sum * (POWERS[-k] as number)
}
