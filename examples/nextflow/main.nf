// One process: every series folder of params.input through concordct, in parallel, resumable with -resume.
//   nextflow run main.nf --input 'exams/*' --model br40-to-bl64 --output standardized
nextflow.enable.dsl = 2

params.input = 'exams/*'
params.model = 'br40-to-bl64'
params.output = 'standardized'
params.mode = 'sample'
params.seed = 0

process STANDARDIZE {
    tag "${exam.name}"
    container 'concordct'
    cpus 1
    memory '2 GB'
    errorStrategy { task.attempt <= 2 ? 'retry' : 'ignore' }
    publishDir params.output, mode: 'copy'

    input:
    path exam
    path model

    output:
    path "out/${exam.name}"

    script:
    """
    concordct standardize ${exam} -m ${model} -o out/${exam.name} --mode ${params.mode} --seed ${params.seed}
    """
}

workflow {
    exams = Channel.fromPath(params.input, type: 'dir')
    STANDARDIZE(exams, file(params.model))
}
