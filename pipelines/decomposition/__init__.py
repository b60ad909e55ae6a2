"""Parts of the stages freeze and decompose: session, survey, plan, layer loop, memory."""
