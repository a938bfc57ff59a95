// Rank arithmetic: 16 ranks on two machines of 8, tensor-parallel over 4, pipeline-parallel over 2, two replicas along the context.
import { launch, Mapping, Tensor } from 'rankmesh'

const sizes = { worldSize: 16, gpusPerNode: 8, tpSize: 4, ppSize: 2, cpSize: 2 }

for (const rank of [0, 5, 13]) {
  const m = new Mapping({ ...sizes, rank })
  console.log(
    `rank ${rank}: node ${m.nodeRank}, tp ${m.tpRank} of [${m.tpGroup}], pp ${m.ppRank} of [${m.ppGroup}], cp ${m.cpRank} of [${m.cpGroup}]`,
  )
  console.log(`         layers ${m.ppLayers(30).join(' ')} of 30; next stage is rank ${m.nextPpRank()}`)
}

// The same groups as communicators: each rank sums over its tensor-parallel group alone.
const sums = await launch({ ranks: 16 }, async ({ rank, device, comm }) => {
  const mapping = new Mapping({ ...sizes, rank })
  const tp = await comm.split({ color: mapping.tpGroup[0], key: mapping.tpRank })
  const sum = await tp.allReduce(Tensor.full([1], rank, { device }))
  return (await sum.data())[0]
})
console.log("sum of ranks in each rank's tp group:", sums.join(' '))
